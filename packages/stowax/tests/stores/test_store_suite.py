"""Every store of ours keeps the promises of the port."""

from stowax._stores._local import LocalStore
from stowax.testing._memory_store import MemoryStore
from stowax.testing._recording_store import RecordingStore
from stowax.testing.store_suite import StoreSuite


class TestLocalStore(StoreSuite):
    def make_store(self):
        return LocalStore()


class TestLocalStoreWithoutExchange(StoreSuite):
    def make_store(self):
        return LocalStore(can_exchange=False)


class TestMemoryStore(StoreSuite):
    def make_store(self):
        return MemoryStore()


class TestRecordingStore(StoreSuite):
    def make_store(self):
        return RecordingStore(MemoryStore())

"""Objects of a user's own that tests save beside trees."""


class Notes:
    """A guest that writes a file of its own."""

    def __init__(self, text=""):
        self.text = text

    async def save(self, directory):
        text = self.text

        async def write():
            path = await directory.await_creation()
            (path / "notes.txt").write_text(text)

        return write()

    async def load(self, directory):
        async def read():
            self.text = (directory / "notes.txt").read_text()

        return read()

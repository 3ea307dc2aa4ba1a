"""What the documentation site has beside the pages of `docs/`: the pages that are written from the code, and how it is built."""

"""Tables of one run on the terminal; the pages and figures of the documentation; two versions compared."""

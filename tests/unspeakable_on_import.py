"""A module of kernels that nobody gets to see: what it raises fits into no terminal and no JSON."""


class Unspeakable(BaseException):
    """Neither is it an Exception."""


raise Unspeakable("out of \x1b[31mluck \ud800\nand more")

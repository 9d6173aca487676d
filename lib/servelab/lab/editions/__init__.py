"""Other forms of the course, made from the notebooks alone: static pages, and a workshop to hand out."""


class EditionError(Exception):
    """An edition cannot be made; the message says what to do next."""

"""What a user's mistake raises: one clear line, exit code 2, no traceback."""


class UserError(Exception):
    """Bad input. The message says what was wrong, where (file, key), and what would be right."""


class ImpossiblePoint(UserError):
    """A sound spec whose values can't be trained together (width not divisible by heads, a block
    longer than the data, ...). A sweep drops such a point; a person sees the same line."""

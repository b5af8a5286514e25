"""Texts without a visible character."""

BLANK_TEXTS = (
    "",
    " ",
    "\t\r\n",
    "\u00a0\u3000",  # white space of other widths
    "\u200b\ufeff",  # of no width
    "\x1c\x85",
    "\ufe0f",  # variation selector, what remains of a picture
    "\u034f\u061c",
    "\u180b",
    "\U000e0020",
    "\u0301",  # accents without a letter
    " \u0941 ",
    "\u3164",  # Hangul filler
    "\ufffc",  # in place of an embedded picture
)

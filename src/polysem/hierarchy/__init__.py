"""What features of one dictionary, or of a narrower one beside it, are to each other: one twice, parts of one, one above
another, or nothing."""

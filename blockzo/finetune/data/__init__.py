"""Tasks and rows: from a file of the user's to labelled, tokenised examples in a fixed order."""

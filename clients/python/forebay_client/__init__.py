"""A client for Forebay: numpy in, numpy out."""

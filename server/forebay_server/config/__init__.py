"""Configuration: one typed tree, its sources, and how they are put together. A leaf."""

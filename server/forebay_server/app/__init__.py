"""The composition root: builds everything, joins it, starts and drains it."""

"""Rows of tables in; labels, numbers or clusters out."""

"""Graphs that runtimes compute slowly or wrongly, and that an equal graph spares them.

Each function recognises one such place; a dialect then writes an operator that changes no result. All of
this was measured, with the versions named; none of it is documented anywhere.
"""

"""Planted faults: what a wrong lowering, a wrong runtime or a damaged file would compute, and who notices.

subjects    small versions of every own network, in every profile, as bundles
graph       finding quantizers, layers and constants in any QDQ graph
faults      the list; one function a fault, in faults_*.py
judging     one mutant before lint, inspect and verify
"""

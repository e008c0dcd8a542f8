"""Readers of strangers' files, fed with whatever a fuzzer thinks of.

targets     one function a reader: bytes in, deliberate errors allowed, anything else is a finding
corpus      what mutation starts from, written by the project's own code, and findings of before
guided      atheris: mutation guided by coverage
plain       the same without atheris: mutation of the corpus, structure-aware
"""

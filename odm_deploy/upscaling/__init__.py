"""Engines at work on pictures: images of any size, folders, videos and pipes."""

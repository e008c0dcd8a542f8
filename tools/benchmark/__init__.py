"""`make bench`: what our models cost on the runtimes of this machine, beside what people would use instead."""

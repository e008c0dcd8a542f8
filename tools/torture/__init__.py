"""What strangers, crashes and full disks do to the commands, done to them on purpose.

commands    command lines, and all that commands import, imported once
forked      one command in a process of its own, limited, timed, and killed on demand
batches     several commands one after the other in one such process
tally       counts that add up over several runs
material    a tiny model, its bundle, images, a clip and a recipe
mutating    damaged copies of a file: bytes, and documents with hostile values in them
damaging_onnx  damaged graphs that still parse
kinds       every kind of file, how it is damaged, who reads it
hostile     damaged files before every verb that reads such files
jobs        every verb as work that may be disturbed, and what may be there afterwards
kills       SIGKILL at random instants
disks       a disk that is full after any number of pages, and two writers at once
"""

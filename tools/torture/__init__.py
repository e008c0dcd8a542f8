"""What strangers, crashes and full disks do to the commands, done to them on purpose.

forked      one command in a process of its own, limited, timed, and killed on demand
material    a tiny model, its bundle, images, a clip and a recipe
mutating    damaged copies of a file: bytes, and documents with hostile values in them
hostile     damaged files before every verb that reads such files
kills       SIGKILL at random instants over every verb that writes
disks       a disk that is full after any number of bytes, and two writers at once
soak        the server under slow, broken and oversize clients
"""

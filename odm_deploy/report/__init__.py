"""One page about a bundle: the verdict, what it rests on, and what it looks like. `odm-deploy report` writes it."""

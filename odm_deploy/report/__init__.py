"""One page about a bundle: the verdict, what it rests on, and what it looks like. `odm-deploy report` writes it.

make               finds out everything the page says
content            what it says, as values
page               that as HTML and as markdown, with charts of `svg`
crops              pictures side by side
layer_statistics   what each layer's grid makes of its input
"""

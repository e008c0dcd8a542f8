"""`--trust`: permission to build networks of other people's code, for as long as one command runs."""

from __future__ import annotations

import click


def _trust(context: click.Context, _: click.Parameter, paths: tuple[str, ...]) -> None:
    if paths:
        from odm_deploy.networks.builders import trusting

        context.with_resource(trusting(*paths))


trust_option = click.option(
    "--trust",
    multiple=True,
    metavar="PKG.MODULE:NAME",
    expose_value=False,
    callback=_trust,
    help="Allow a model.pt to be built by this class or function; repeatable. Importing it runs its code.",
)

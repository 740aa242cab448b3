"""`forebay config`: lists all settings with their documentation."""

import click


@click.command()
@click.option("--markdown", "as_page", is_flag=True, help="As the page docs/configuration.md.")
@click.argument("prefix", default="")
def config(prefix: str, *, as_page: bool) -> None:
    """List the settings and what each means.

    Each has its default, what it may hold, and its environment variable. PREFIX, such as `server` or
    `models.N.batching`, shows only what begins with it.
    """
    from forebay_server.config import documentation

    if as_page:
        click.echo(documentation.markdown(), nl=False)
        return
    chosen = [setting for setting in documentation.settings() if setting.path.startswith(prefix)]
    if not chosen:
        raise click.BadArgumentUsage(f"no setting begins with {prefix!r}", click.get_current_context())
    for setting in chosen:
        unit = f" {setting.unit}" if setting.unit else ""
        click.echo(f"{click.style(setting.path, bold=True)} = {documentation.shown(setting.default)}{unit}")
        click.echo(f"    {setting.documentation}")
        click.echo(f"    {setting.allowed}; {setting.variable}")

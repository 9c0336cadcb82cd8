"""`prompts`: what a model can be asked with --prompt-profile."""

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Prompt profiles: list, show.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="A name that `prompts list` shows.")]


@app.command("list")
def list_() -> None:
    """List the profiles that can be named in --prompt-profile."""
    from rich.console import Console
    from rich.table import Table

    from phototagger import prompts

    table = Table()
    for heading in ("profile", "asks for", "description"):
        table.add_column(heading, overflow="fold")
    for profile in prompts.list_profiles():
        table.add_row(profile.name, ", ".join(profile.prompts), profile.description)
    Console().print(table)


@app.command()
def show(name: Name) -> None:
    """Print what a profile says to the model, per field, and the limits of the answer."""
    from phototagger import prompts

    profile = prompts.load_profile(name)
    print(f"{profile.name}: {profile.description}")
    for field, prompt in profile.prompts.items():
        limits = {
            "max_tokens": prompt.max_tokens,
            "temperature": prompt.temperature,
            "top_p": prompt.top_p,
            "max_chars": prompt.max_chars,
            "max_keywords": prompt.max_keywords,
        }
        given = ", ".join(f"{key} {value:g}" for key, value in limits.items() if value is not None)
        print(f"\n{field} ({given})")
        for role, text in (("system", prompt.system), ("user", prompt.user)):
            print(f"\n  {role}:")
            for line in text.strip().splitlines():
                print(f"    {line}".rstrip())

import typer

app = typer.Typer()


def init(): ...
def demo(): ...

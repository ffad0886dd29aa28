"""Divergences of a run as exact_*.py write them: the exact ones beside a certificate's estimates."""

from collections.abc import Mapping
from typing import Any

from twistlm.certificates.certificate import Certificate
from twistlm.core.storage import as_json


def compared(exact: Mapping[str, float], certificate: Certificate) -> dict[str, Any]:
    """JSON values: what is exact, and both KLs and log Z with their intervals."""
    estimate = certificate.divergences
    assert estimate.kl_target_q is not None
    return {
        "exact": dict(exact),
        "estimate": {
            "kl_q_target": as_json(estimate.kl_q_target),
            "kl_target_q": as_json(estimate.kl_target_q),
            "log_Z": as_json(estimate.log_Z),
        },
    }

"""What a server asks of settings and policy before a run begins."""

from __future__ import annotations

from blockzo.federated.privacy.accounting import need_accounting
from blockzo.federated.protocol.settings import RoundPolicy, RunSettings


def check_run(settings: RunSettings, policy: RoundPolicy) -> None:
    """To be called before anything is written.

    Raises:
        ValueError: the rounds do not go with the settings.
        ImportError: what they need is not installed.
    """
    private = settings.private
    if private is not None:
        need_accounting()
        if private.sampling_rate < 1 and (policy.clients is not None or policy.quorum > 1):
            raise ValueError(
                f"policy asks {policy.clients} clients with a quorum of {policy.quorum}; with a sampling_rate clients are drawn "
                "one by one and every round counts, or it would tell who was drawn: expected None and 1"
            )
    if settings.secure_sum:
        from blockzo.federated.secagg.crypto import need_cryptography
        from blockzo.federated.secagg.round import check_policy

        need_cryptography()
        check_policy(policy, private.survivors if private is not None else 0)

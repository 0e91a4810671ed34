"""What every process derives from the settings in the same way."""

from service.domain import catalogue
from service.domain.addresses import HostList
from service.domain.rules import Rules
from service.settings import Settings
from service.storage.objects import BucketConfig
from service.storage.terms import Limits


def limits(settings: Settings, *, replicas_timeout_s: float = 1.0) -> Limits:
    """The store's bounds, the same in every process; how long it waits for replicas is each one's own."""
    caps = {model: cap for model in catalogue.MODELS if (cap := catalogue.cap(model)) is not None}
    return Limits(
        max_in_flight=settings.flux_max_in_flight,
        caps=caps,
        backlog_max=settings.backlog_max,
        events_max=settings.events_max,
        retention_s=settings.job_retention_days * 86_400,
        callbacks=settings.public_base_url is not None,
        spool_lost_s=settings.spool_lost_s,
        replicas=settings.redis_replicas_to_wait,
        replicas_timeout_s=replicas_timeout_s,
    )


def rules(settings: Settings) -> Rules:
    return Rules(
        extra_models=frozenset(settings.flux_extra_models),
        notify_hosts=HostList.parse(settings.notify_hosts, any_public=True),
        notified=settings.notify_secrets.keys(),
        max_body_bytes=settings.max_body_bytes,
        max_input_bytes=settings.input_image_max_bytes,
    )


def bucket_config(settings: Settings, *, max_connections: int = 16) -> BucketConfig:
    return BucketConfig(
        name=settings.s3_bucket,
        endpoint_url=settings.s3_endpoint_url,
        region=settings.s3_region,
        prefix=settings.s3_prefix,
        public_endpoint_url=settings.s3_public_endpoint_url,
        presign_ttl_s=settings.presign_ttl_s,
        conditional_writes=settings.s3_conditional_writes,
        sse_kms_key_id=settings.s3_sse_kms_key_id,
        expected_bucket_owner=settings.s3_expected_bucket_owner,
        storage_class=settings.s3_storage_class,
        tags=settings.s3_tags,
        deadline_s=settings.s3_timeout_s,
        max_connections=max_connections,
    )

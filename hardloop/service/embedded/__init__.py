"""Real services as our children: SeaweedFS, Label Studio and MLflow on loopback, for who brings none of their own."""

from hardloop.service.embedded.label_studio_server import LabelStudioEndpoint
from hardloop.service.embedded.services import EmbeddedServices, Endpoints, Service

__all__ = ["EmbeddedServices", "Endpoints", "LabelStudioEndpoint", "Service"]

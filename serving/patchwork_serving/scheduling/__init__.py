"""What an ingress decides about requests and calls: the glue between ``patchwork_scheduler`` and the gateway and transport.

``Scheduling`` is the one owner of estimates, routers and admission of its process. Nothing here waits, connects or reads a clock.
"""

from patchwork_serving.scheduling.core import Scheduling, Step
from patchwork_serving.scheduling.door import Setting, Told
from patchwork_serving.scheduling.sending import Asking, Sending

__all__ = ["Asking", "Scheduling", "Sending", "Setting", "Step", "Told"]

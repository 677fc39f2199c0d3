"""Adds the servicers of the speech service to its server."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from aimass.speech.v1.detection_service_pb2_grpc import add_SpeechDetectionServiceServicer_to_server
from aimass.speech.v1.recognition_service_pb2_grpc import add_SpeechRecognitionServiceServicer_to_server
from aimass.speech.v1.synthesis_service_pb2_grpc import add_SpeechSynthesisServiceServicer_to_server

from aimass_speech import detection_servicer, recognition_servicer, synthesis_servicer
from aimass_speech.detection_servicer import SpeechDetectionServicer
from aimass_speech.recognition_servicer import SpeechRecognitionServicer
from aimass_speech.served import SpeechRegistry
from aimass_speech.synthesis_servicer import SpeechSynthesisServicer


def register(server: grpc.aio.Server, registry: SpeechRegistry) -> Sequence[str]:
    """Add the servicers; return their full names."""
    add_SpeechDetectionServiceServicer_to_server(SpeechDetectionServicer(registry), server)
    add_SpeechRecognitionServiceServicer_to_server(SpeechRecognitionServicer(registry), server)
    add_SpeechSynthesisServiceServicer_to_server(SpeechSynthesisServicer(registry), server)
    servicers = detection_servicer, recognition_servicer, synthesis_servicer
    return [each.SERVICE_NAME for each in servicers]

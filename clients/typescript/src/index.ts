/** Typed client of the aimass services. */

export type { CallOptions } from "./call.js";
export { Connection, type ConnectionOptions, type TlsOptions } from "./connection.js";
export {
  type EmbedConfig,
  type EmbeddedText,
  EmbeddingClient,
  type Embeddings,
  type EmbedItem,
  type FailedText,
  requireVector,
} from "./embedding.js";
export {
  AimassError,
  type Failure,
  type FieldViolation,
  type ItemFailure,
  type Reason,
  type StatusCode,
} from "./errors.js";
export type { Timings, Usage } from "./gen/aimass/common/v1/usage_pb.js";
export { Truncation, VectorDtype } from "./gen/aimass/embedding/v1/embedding_service_pb.js";
export {
  type CompleteResponse,
  type Delta,
  type Finish,
  FinishReason,
  type PromptInfo,
  type TokenLogprob,
} from "./gen/aimass/generation/v1/generation_service_pb.js";
export {
  ParityMeasure_Comparison,
  type ParityRecord,
  Precision,
  Task,
} from "./gen/aimass/model/v1/manifest_pb.js";
export { type Model, type ModelLimits, ModelState } from "./gen/aimass/model/v1/model_service_pb.js";
export { GenerationClient, type GenerationRequest, GenerationStream } from "./generation.js";
export { ModelClient } from "./models.js";
export type { ChatMessage, ChatPrompt, Prompt, TokenIdsPrompt } from "./prompt.js";
export { type PackedVector, unpackVector } from "./vectors.js";

/** Sentence embeddings: many texts in one call, or a stream of texts. */

import type { MessageInitShape } from "@bufbuild/protobuf";
import type { CallOptions } from "./call.js";
import { AimassError, type ItemFailure, itemFailure } from "./errors.js";
import type { Timings, Usage } from "./gen/aimass/common/v1/usage_pb.js";
import {
  EmbeddingService,
  type EmbedOptionsSchema,
  type EmbedResponse,
  type EmbedResult,
  type EmbedStreamRequestSchema,
  type EmbedStreamResponse,
  type VectorDtype,
} from "./gen/aimass/embedding/v1/embedding_service_pb.js";
import { ServiceClient } from "./service-client.js";
import { unpackVector } from "./vectors.js";

/** Whose vectors, and what they are to be like. Options left out take the model's defaults. */
export interface EmbedConfig {
  /** Name of a served model, or `name@version`. */
  readonly model: string;
  readonly options?: MessageInitShape<typeof EmbedOptionsSchema>;
  /** The caller's name for this request in logs and traces. */
  readonly requestId?: string;
}

/** A text that has a vector. */
export interface EmbeddedText {
  readonly failure?: undefined;
  readonly vector: Float32Array;
  /** The bytes the vector travelled in: for an index that takes int8 or binary vectors. */
  readonly packed: Uint8Array;
  /** INT8 only: multiply each byte by this to undo the packing. */
  readonly scale: number;
  /** Tokens the model saw. */
  readonly tokens: number;
  /** Tokens that were cut off; 0 when the text fitted. */
  readonly truncatedTokens: number;
}

/** A text that has none. */
export interface FailedText {
  readonly failure: ItemFailure;
}

/** One text's answer; `failure` tells which of the two it is. */
export type EmbedItem = EmbeddedText | FailedText;

/** The answers to one call, in the order of its texts. */
export interface Embeddings {
  readonly items: readonly EmbedItem[];
  /** Numbers in each vector. */
  readonly dimensions: number;
  readonly dtype: VectorDtype;
  readonly model: string;
  readonly modelVersion: string;
  readonly usage: Usage | undefined;
  readonly timings: Timings | undefined;
}

/** The item's vector. Throws `AimassError` with the item's own reason when it has none. */
export function requireVector(item: EmbedItem): Float32Array {
  if (item.failure) throw new AimassError({ code: "FAILED_PRECONDITION", ...item.failure });
  return item.vector;
}

/** Client of `aimass.embedding.v1.EmbeddingService`. All methods throw `AimassError`. */
export class EmbeddingClient extends ServiceClient {
  readonly #service = this.connection.client(EmbeddingService);

  /** Embeds texts in one call. A bad text fails its own item, not the call. */
  async embed(
    request: EmbedConfig & { readonly texts: readonly string[] },
    options: CallOptions = {},
  ): Promise<Embeddings> {
    const message = { ...request, texts: [...request.texts] };
    const response = await this.connection.unary(
      (callOptions) => this.#service.embed(message, callOptions),
      options,
    );
    return embeddings(response);
  }

  /** Embeds texts as they arrive; yields one item for each, in their order. Leaving the loop early cancels the call. */
  async *embedStream(
    config: EmbedConfig,
    texts: AsyncIterable<string> | Iterable<string>,
    options: CallOptions = {},
  ): AsyncGenerator<EmbedItem, void, undefined> {
    const responses = this.connection.stream(
      (callOptions) => this.#service.embedStream(streamRequests(config, texts), callOptions),
      options,
    );
    for await (const response of responses) yield streamItem(response);
  }
}

async function* streamRequests(
  config: EmbedConfig,
  texts: AsyncIterable<string> | Iterable<string>,
): AsyncGenerator<MessageInitShape<typeof EmbedStreamRequestSchema>, void, undefined> {
  yield { request: { case: "config", value: config } };
  for await (const text of texts) yield { request: { case: "text", value: text } };
}

function embeddings({ results, ...response }: EmbedResponse): Embeddings {
  const { dimensions, dtype, model, modelVersion, usage, timings } = response;
  const items = results.map((result) => item(result, dtype, dimensions));
  return { items, dimensions, dtype, model, modelVersion, usage, timings };
}

function streamItem({ result, dtype, dimensions }: EmbedStreamResponse): EmbedItem {
  return item(result, dtype, dimensions);
}

function item(answer: EmbedResult | undefined, dtype: VectorDtype, dimensions: number): EmbedItem {
  const result = answer?.result;
  if (result?.case === "error") return { failure: itemFailure(result.value) };
  if (result?.case !== "embedding") {
    throw new AimassError({ code: "UNKNOWN", message: "the server sent a result without vector or error" });
  }
  const { vector: packed, scale, tokens, truncatedTokens } = result.value;
  return {
    vector: unpackVector({ packed, dtype, dimensions, scale }),
    packed,
    scale,
    tokens,
    truncatedTokens,
  };
}

/** Text generation: streamed deltas, whole texts, token ids. */

import type { MessageInitShape } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import type { CallOptions } from "./call.js";
import { AimassError } from "./errors.js";
import {
  type CompleteResponse,
  type Delta,
  type Finish,
  type GenerateRequestSchema,
  type GenerateResponse,
  GenerationService,
  type PromptInfo,
} from "./gen/aimass/generation/v1/generation_service_pb.js";
import type {
  BeamOptionsSchema,
  GuidanceOptionsSchema,
  OutputOptionsSchema,
  SamplingOptionsSchema,
  StoppingOptionsSchema,
} from "./gen/aimass/generation/v1/options_pb.js";
import { type ChatPrompt, type Prompt, promptField, textPromptField } from "./prompt.js";
import { ServiceClient } from "./service-client.js";

/** What to continue, and how. Fields left out take the model's defaults; ranges are in the protos. */
export interface GenerationRequest {
  /** Name of a served model, or `name@version`. */
  readonly model: string;
  readonly prompt: Prompt;
  /** How the next token is chosen. */
  readonly sampling?: MessageInitShape<typeof SamplingOptionsSchema>;
  /** When the text ends. */
  readonly stopping?: MessageInitShape<typeof StoppingOptionsSchema>;
  /** What to send beside the text. */
  readonly output?: MessageInitShape<typeof OutputOptionsSchema>;
  /** Hold the text to a JSON schema, a regular expression, choices or a grammar. */
  readonly guidance?: MessageInitShape<typeof GuidanceOptionsSchema>;
  /** Search with beams; the text then comes whole, in one delta. */
  readonly beams?: MessageInitShape<typeof BeamOptionsSchema>;
  /** Name of one of the model's adapters to compute with; the base model alone when left out. */
  readonly adapter?: string;
  /** Only prompts with the same salt share what the server computed of them. */
  readonly cacheSalt?: string;
  /** A higher number is served earlier. */
  readonly priority?: number;
  /** Ends the text after this time and keeps what was generated: unlike the deadline it is no error. */
  readonly timeLimitMs?: number;
  /** The caller's name for this request in logs and traces. */
  readonly requestId?: string;
}

/**
 * The continuation as it is written. Iterate once to read its deltas: the call starts with the first read, and
 * leaving the loop early cancels it at the server.
 */
export class GenerationStream implements AsyncIterable<Delta> {
  readonly #responses: AsyncGenerator<GenerateResponse, void, undefined>;
  #promptInfo: PromptInfo | undefined;
  #finish: Finish | undefined;

  constructor(responses: AsyncGenerator<GenerateResponse, void, undefined>) {
    this.#responses = responses;
  }

  /** What the server understood; there from the first delta on. */
  get promptInfo(): PromptInfo | undefined {
    return this.#promptInfo;
  }

  /** Why the text ended and what it cost; there after the last delta. */
  get finish(): Finish | undefined {
    return this.#finish;
  }

  /** Reads all that is left and returns its text. */
  async text(): Promise<string> {
    let text = "";
    for await (const delta of this) text += delta.text;
    return text;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Delta, void, undefined> {
    for await (const { event } of this.#responses) {
      if (event.case === "delta") yield event.value;
      else if (event.case === "promptInfo") this.#promptInfo = event.value;
      else if (event.case === "finish") this.#finish = event.value;
    }
    if (this.#finish === undefined) {
      throw new AimassError({ code: "UNKNOWN", message: "the stream ended without its last message" });
    }
  }
}

/** Client of `aimass.generation.v1.GenerationService`. All methods throw `AimassError`. */
export class GenerationClient extends ServiceClient {
  readonly #service = this.connection.client(GenerationService);

  /** Streams the continuation. The texts of all deltas, joined, are the text `complete` returns. */
  generate(request: GenerationRequest, options: CallOptions = {}): GenerationStream {
    const message = requestFields(request);
    return new GenerationStream(
      this.connection.stream((callOptions) => this.#service.generate(message, callOptions), options),
    );
  }

  /** Returns the whole continuation. */
  async complete(request: GenerationRequest, options: CallOptions = {}): Promise<CompleteResponse> {
    const message = requestFields(request);
    return this.connection.unary((callOptions) => this.#service.complete(message, callOptions), options);
  }

  /** Returns the token ids of a prompt as `generate` would see them. */
  async tokenize(
    request: { readonly model: string; readonly prompt: string | ChatPrompt },
    options: CallOptions = {},
  ): Promise<number[]> {
    const message = { model: request.model, prompt: textPromptField(request.prompt) };
    const { tokenIds } = await this.connection.unary(
      (callOptions) => this.#service.tokenize(message, callOptions),
      options,
    );
    return tokenIds;
  }

  /** Returns the text of token ids. */
  async detokenize(
    request: {
      readonly model: string;
      readonly tokenIds: readonly number[];
      readonly keepSpecialTokens?: boolean;
    },
    options: CallOptions = {},
  ): Promise<string> {
    const message = { ...request, tokenIds: [...request.tokenIds] };
    const { text } = await this.connection.unary(
      (callOptions) => this.#service.detokenize(message, callOptions),
      options,
    );
    return text;
  }
}

/** The fields that GenerateRequest and CompleteRequest share. */
function requestFields(
  request: GenerationRequest,
): Omit<MessageInitShape<typeof GenerateRequestSchema>, "$typeName"> {
  const { prompt, timeLimitMs, ...fields } = request;
  return {
    ...fields,
    prompt: promptField(prompt),
    ...(timeLimitMs !== undefined && { timeLimit: durationFromMs(timeLimitMs) }),
  };
}

/** The forms a prompt can have, and how each is laid out in a request. */

import type { MessageInitShape } from "@bufbuild/protobuf";
import type { GenerateRequestSchema } from "./gen/aimass/generation/v1/generation_service_pb.js";

/** One turn of a conversation. */
export interface ChatMessage {
  /** A role the model's template knows, commonly `system`, `user` or `assistant`. */
  readonly role: string;
  readonly content: string;
  /** Calls the model made in this turn, each the JSON of an object as its template lays it out. */
  readonly toolCalls?: readonly string[];
  /** Name of the tool whose result this is, for a turn of role `tool`. */
  readonly name?: string;
}

/** A conversation that ends where the model is to speak, laid out by the model's own chat template. */
export interface ChatPrompt {
  readonly messages: readonly ChatMessage[];
  /** Functions the model may call, each the JSON of an object, commonly `{"type": "function", ...}`. */
  readonly tools?: readonly string[];
}

/** Token ids, used as they are. */
export interface TokenIdsPrompt {
  readonly tokenIds: readonly number[];
}

/** What to continue: plain text, a conversation or token ids. */
export type Prompt = string | ChatPrompt | TokenIdsPrompt;

type PromptField = Exclude<MessageInitShape<typeof GenerateRequestSchema>["prompt"], undefined>;
type TokenizedPromptField = Exclude<PromptField, { case: "tokenIds" }>;

/** The oneof of a prompt that is still text. */
export function textPromptField(prompt: string | ChatPrompt): TokenizedPromptField {
  if (typeof prompt === "string") return { case: "text", value: prompt };
  const messages = prompt.messages.map((turn) => ({ ...turn, toolCalls: [...(turn.toolCalls ?? [])] }));
  return { case: "chat", value: { messages, tools: [...(prompt.tools ?? [])] } };
}

/** The oneof of any prompt. */
export function promptField(prompt: Prompt): PromptField {
  if (typeof prompt === "string" || "messages" in prompt) return textPromptField(prompt);
  return { case: "tokenIds", value: { ids: [...prompt.tokenIds] } };
}

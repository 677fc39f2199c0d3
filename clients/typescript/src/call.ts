/** One call under way: its deadline, its cancellation, and what its failure means. Knows no connection. */

import { setMaxListeners } from "node:events";
import { AimassError, connectionFailure, type StatusCode } from "./errors.js";

/** gRPC sends a deadline as whole milliseconds in at most eight digits: about 27 hours. */
const MAX_TIMEOUT_MS = 99_999_999;

/** What a single call may say for itself. */
export interface CallOptions {
  /** Deadline in milliseconds from now. Default: the connection's. */
  readonly timeoutMs?: number;
  /** Cancels the call, here and at the server, when aborted. */
  readonly signal?: AbortSignal;
  /** W3C trace context of the caller, passed on as it is. */
  readonly traceparent?: string;
  /** W3C vendor part of the trace context, passed on as it is. */
  readonly tracestate?: string;
  /** Further metadata. */
  readonly headers?: Readonly<Record<string, string>>;
}

/** Lives from a call's start to its `end`. */
export class RunningCall {
  readonly timeoutMs: number;
  readonly #expiresMs: number;
  readonly #cancel = new AbortController();
  readonly #stopListening: () => void;

  /** Starts the clock. `cancelledBy` are the signals that cancel the call. Throws `AimassError`. */
  constructor(timeoutMs: number, cancelledBy: readonly AbortSignal[]) {
    this.timeoutMs = checkedTimeout(timeoutMs);
    this.#expiresMs = performance.now() + this.timeoutMs;
    const cancel = () => this.#cancel.abort();
    setMaxListeners(0, ...cancelledBy); // one signal may well stand for hundreds of calls
    for (const signal of cancelledBy) signal.addEventListener("abort", cancel);
    this.#stopListening = () => {
      for (const signal of cancelledBy) signal.removeEventListener("abort", cancel);
    };
    if (cancelledBy.some(({ aborted }) => aborted)) cancel();
  }

  /** Aborted when the call is to be cancelled. */
  get signal(): AbortSignal {
    return this.#cancel.signal;
  }

  /** What the call threw, as the error its caller is to see. */
  failure(cause: unknown): AimassError {
    return connectionFailure(cause, this.#codeOfBreak()) ?? AimassError.from(cause);
  }

  /** Cancels what may still run, and lets go of the signals. */
  end(): void {
    this.#stopListening();
    this.#cancel.abort();
  }

  /** The status of a call whose connection broke: its own end often looks like that. */
  #codeOfBreak(): StatusCode {
    if (this.signal.aborted) return "CANCELLED";
    return performance.now() >= this.#expiresMs ? "DEADLINE_EXCEEDED" : "UNAVAILABLE";
  }
}

function checkedTimeout(timeoutMs: number): number {
  if (!(timeoutMs > 0 && timeoutMs <= MAX_TIMEOUT_MS)) {
    throw AimassError.ofField("timeoutMs", `expected above 0, up to ${MAX_TIMEOUT_MS}, got ${timeoutMs}`);
  }
  return Math.ceil(timeoutMs);
}

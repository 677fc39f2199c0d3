/**
 * One HTTP/2 connection to one aimass service, and the rules of every call over it: a deadline, cancellation
 * when nobody reads any more, `AimassError` for every failure. Knows no service.
 */

import type { SecureClientSessionOptions } from "node:http2";
import type { DescService } from "@bufbuild/protobuf";
import {
  type Client,
  type CallOptions as ConnectCallOptions,
  createClient,
  type Interceptor,
  type Transport,
} from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager, type Http2SessionOptions } from "@connectrpc/connect-node";
import { AimassError } from "./errors.js";

const DEFAULT_TIMEOUT_MS = 60_000;
const DEFAULT_STREAM_TIMEOUT_MS = 600_000;
const DEFAULT_KEEPALIVE_MS = 60_000;
const KEEPALIVE_TIMEOUT_MS = 20_000;
const DEFAULT_MAX_RECEIVE_BYTES = 64 * 1024 * 1024;
/** gRPC sends a deadline as whole milliseconds in at most eight digits: about 27 hours. */
const MAX_TIMEOUT_MS = 99_999_999;

/** How the server proves who it is, and with `cert` and `key` the client too (mutual TLS). All in PEM. */
export interface TlsOptions {
  /** Certificate authorities to trust instead of the system's. */
  readonly ca?: string | Buffer;
  /** Certificate chain of this client. */
  readonly cert?: string | Buffer;
  /** Private key of this client. */
  readonly key?: string | Buffer;
  /** Name the server's certificate must carry when it is not the host of the address. */
  readonly serverName?: string;
}

export interface ConnectionOptions {
  /** Where the service listens: `host:port`. */
  readonly address: string;
  /** Encrypts the connection; `true` trusts the system's authorities. Default: plain text. */
  readonly tls?: TlsOptions | boolean;
  /** Sent with every call as `authorization: Bearer ...`. */
  readonly apiKey?: string;
  /** Deadline of a call that answers with one message, in milliseconds. Default 60 000. */
  readonly timeoutMs?: number;
  /** Deadline of a call that answers with a stream, from its start to its last message. Default 600 000. */
  readonly streamTimeoutMs?: number;
  /** The largest message to accept, in bytes. Default 64 MiB. */
  readonly maxReceiveBytes?: number;
  /** A ping after this long without traffic while a call runs, in milliseconds. Default 60 000. */
  readonly keepaliveMs?: number;
  /** Run around every call, outermost first: the place for tracing libraries. */
  readonly interceptors?: readonly Interceptor[];
}

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

/** A connection that several clients may share. Opened by the first call; `close` ends it and all its calls. */
export class Connection {
  readonly #options: ConnectionOptions;
  readonly #session: Http2SessionManager;
  readonly #transport: Transport;

  constructor(options: ConnectionOptions) {
    this.#options = options;
    const baseUrl = `${options.tls ? "https" : "http"}://${checkedAddress(options.address)}`;
    this.#session = new Http2SessionManager(
      baseUrl,
      pingOptions(options.keepaliveMs),
      tlsOptions(options.tls),
    );
    this.#transport = createGrpcTransport({
      baseUrl,
      sessionManager: this.#session,
      readMaxBytes: options.maxReceiveBytes ?? DEFAULT_MAX_RECEIVE_BYTES,
      interceptors: [...(options.interceptors ?? [])],
    });
  }

  /** A bare generated client of a service, for calls this package does not wrap. */
  client<S extends DescService>(service: S): Client<S> {
    return createClient(service, this.#transport);
  }

  /** Runs one unary call. Throws `AimassError`. */
  async unary<T>(call: (options: ConnectCallOptions) => Promise<T>, options: CallOptions): Promise<T> {
    const callOptions = this.#callOptions(options, this.#options.timeoutMs ?? DEFAULT_TIMEOUT_MS);
    try {
      return await call({ ...callOptions, ...(options.signal && { signal: options.signal }) });
    } catch (cause) {
      throw AimassError.from(cause);
    }
  }

  /**
   * Runs one streaming call. The call starts with the first read, and is cancelled when the consumer stops
   * reading, for whatever reason. Throws `AimassError`.
   */
  async *stream<T>(
    call: (options: ConnectCallOptions) => AsyncIterable<T>,
    options: CallOptions,
  ): AsyncGenerator<T, void, undefined> {
    const callOptions = this.#callOptions(
      options,
      this.#options.streamTimeoutMs ?? DEFAULT_STREAM_TIMEOUT_MS,
    );
    const cancel = new AbortController();
    const forward = () => cancel.abort(options.signal?.reason);
    options.signal?.addEventListener("abort", forward, { once: true });
    if (options.signal?.aborted) forward();
    const messages = call({ ...callOptions, signal: cancel.signal })[Symbol.asyncIterator]();
    try {
      yield* reading(messages);
    } finally {
      options.signal?.removeEventListener("abort", forward);
      cancel.abort();
      // Only a further read makes the transport stop its deadline timer, which would keep the process alive.
      await messages.next().catch(() => undefined);
    }
  }

  /** Closes the connection. Calls under way fail with `CANCELLED`. */
  close(): void {
    this.#session.abort();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #callOptions(options: CallOptions, defaultTimeoutMs: number): ConnectCallOptions {
    return {
      timeoutMs: checkedTimeout(options.timeoutMs ?? defaultTimeoutMs),
      headers: {
        ...(this.#options.apiKey && { authorization: `Bearer ${this.#options.apiKey}` }),
        ...(options.traceparent && { traceparent: options.traceparent }),
        ...(options.tracestate && { tracestate: options.tracestate }),
        ...options.headers,
      },
    };
  }
}

async function* reading<T>(messages: AsyncIterator<T>): AsyncGenerator<T, void, undefined> {
  for (;;) {
    const next = await messages.next().catch((cause: unknown) => {
      throw AimassError.from(cause);
    });
    if (next.done) return;
    yield next.value;
  }
}

function checkedAddress(address: string): string {
  if (!/^(\[[\da-fA-F:.]+\]|[^\s:/@?#[\]]+):\d{1,5}$/.test(address)) {
    throw AimassError.ofField("address", `expected host:port, got ${JSON.stringify(address)}`);
  }
  return address;
}

function checkedTimeout(timeoutMs: number): number {
  if (!(timeoutMs > 0 && timeoutMs <= MAX_TIMEOUT_MS)) {
    throw AimassError.ofField("timeoutMs", `expected above 0, up to ${MAX_TIMEOUT_MS}, got ${timeoutMs}`);
  }
  return Math.ceil(timeoutMs);
}

function pingOptions(keepaliveMs = DEFAULT_KEEPALIVE_MS): Http2SessionOptions {
  return { pingIntervalMs: keepaliveMs, pingTimeoutMs: KEEPALIVE_TIMEOUT_MS };
}

function tlsOptions(tls: ConnectionOptions["tls"]): SecureClientSessionOptions {
  if (tls === undefined || typeof tls === "boolean") return {};
  const { serverName, ...credentials } = tls;
  return serverName === undefined ? credentials : { ...credentials, servername: serverName };
}

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
import { type CallOptions, RunningCall } from "./call.js";
import { AimassError } from "./errors.js";

const DEFAULT_TIMEOUT_MS = 60_000;
const DEFAULT_STREAM_TIMEOUT_MS = 600_000;
const DEFAULT_KEEPALIVE_MS = 60_000;
const KEEPALIVE_TIMEOUT_MS = 20_000;
const DEFAULT_MAX_RECEIVE_BYTES = 64 * 1024 * 1024;

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

/** A connection that several clients may share. Opened by the first call; `close` ends it and all its calls. */
export class Connection {
  readonly #options: ConnectionOptions;
  readonly #session: Http2SessionManager;
  readonly #closed = new AbortController();
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
    const running = this.#start(options, this.#options.timeoutMs ?? DEFAULT_TIMEOUT_MS);
    try {
      return await call(this.#callOptions(options, running));
    } catch (cause) {
      throw running.failure(cause);
    } finally {
      running.end();
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
    const running = this.#start(options, this.#options.streamTimeoutMs ?? DEFAULT_STREAM_TIMEOUT_MS);
    const messages = call(this.#callOptions(options, running))[Symbol.asyncIterator]();
    try {
      yield* reading(messages, running);
    } finally {
      running.end();
      // Only a further read makes the transport stop its deadline timer, which would keep the process alive.
      await messages.next().catch(() => undefined);
    }
  }

  /** Closes the connection for good. Calls under way, and later ones, fail with `CANCELLED`. */
  close(): void {
    this.#closed.abort();
    this.#session.abort();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #start({ timeoutMs, signal }: CallOptions, defaultTimeoutMs: number): RunningCall {
    const cancelledBy = signal ? [this.#closed.signal, signal] : [this.#closed.signal];
    return new RunningCall(timeoutMs ?? defaultTimeoutMs, cancelledBy);
  }

  #callOptions(options: CallOptions, { signal, timeoutMs }: RunningCall): ConnectCallOptions {
    const { traceparent, tracestate, headers } = options;
    const { apiKey } = this.#options;
    return {
      signal,
      timeoutMs,
      headers: {
        ...(apiKey && { authorization: `Bearer ${apiKey}` }),
        ...(traceparent && { traceparent }),
        ...(tracestate && { tracestate }),
        ...headers,
      },
    };
  }
}

async function* reading<T>(
  messages: AsyncIterator<T>,
  running: RunningCall,
): AsyncGenerator<T, void, undefined> {
  for (;;) {
    const next = await messages.next().catch((cause: unknown) => {
      throw running.failure(cause);
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

function pingOptions(keepaliveMs = DEFAULT_KEEPALIVE_MS): Http2SessionOptions {
  return { pingIntervalMs: keepaliveMs, pingTimeoutMs: KEEPALIVE_TIMEOUT_MS };
}

function tlsOptions(tls: ConnectionOptions["tls"]): SecureClientSessionOptions {
  if (tls === undefined || typeof tls === "boolean") return {};
  const { serverName, ...credentials } = tls;
  return serverName === undefined ? credentials : { ...credentials, servername: serverName };
}

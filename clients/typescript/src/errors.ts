/**
 * What a failed call throws: `AimassError`, built from the status and the `google.rpc` details a server sends.
 *
 * Knows gRPC status and nothing of any one service.
 */

import { durationMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { ErrorReason, type ItemError } from "./gen/aimass/common/v1/error_pb.js";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  RequestInfoSchema,
  RetryInfoSchema,
} from "./gen/google/rpc/error_details_pb.js";

const ERROR_DOMAIN = "aimass";
const PUSHBACK_TRAILER = "grpc-retry-pushback-ms";

/** The names gRPC gives its status codes. */
export type StatusCode =
  | "CANCELLED"
  | "UNKNOWN"
  | "INVALID_ARGUMENT"
  | "DEADLINE_EXCEEDED"
  | "NOT_FOUND"
  | "ALREADY_EXISTS"
  | "PERMISSION_DENIED"
  | "RESOURCE_EXHAUSTED"
  | "FAILED_PRECONDITION"
  | "ABORTED"
  | "OUT_OF_RANGE"
  | "UNIMPLEMENTED"
  | "INTERNAL"
  | "UNAVAILABLE"
  | "DATA_LOSS"
  | "UNAUTHENTICATED";

const STATUS_CODES: Readonly<Record<Code, StatusCode>> = {
  [Code.Canceled]: "CANCELLED",
  [Code.Unknown]: "UNKNOWN",
  [Code.InvalidArgument]: "INVALID_ARGUMENT",
  [Code.DeadlineExceeded]: "DEADLINE_EXCEEDED",
  [Code.NotFound]: "NOT_FOUND",
  [Code.AlreadyExists]: "ALREADY_EXISTS",
  [Code.PermissionDenied]: "PERMISSION_DENIED",
  [Code.ResourceExhausted]: "RESOURCE_EXHAUSTED",
  [Code.FailedPrecondition]: "FAILED_PRECONDITION",
  [Code.Aborted]: "ABORTED",
  [Code.OutOfRange]: "OUT_OF_RANGE",
  [Code.Unimplemented]: "UNIMPLEMENTED",
  [Code.Internal]: "INTERNAL",
  [Code.Unavailable]: "UNAVAILABLE",
  [Code.DataLoss]: "DATA_LOSS",
  [Code.Unauthenticated]: "UNAUTHENTICATED",
};

/**
 * Stable, machine-readable cause: an `ErrorReason` of the protos without its prefix, such as `MODEL_NOT_FOUND`,
 * or the name of the status code when the server gave none. Newer servers may send names not listed here.
 */
export type Reason = keyof typeof ErrorReason | StatusCode | (string & {});

/** One refused field: its path in the request, and what was expected and got. */
export interface FieldViolation {
  readonly field: string;
  readonly description: string;
}

/** Why one item of a call failed while the others succeeded. */
export interface ItemFailure {
  readonly reason: Reason;
  readonly message: string;
  readonly violations: readonly FieldViolation[];
}

/** The facts of one failed call. */
export interface Failure {
  readonly code: StatusCode;
  readonly message: string;
  readonly reason?: Reason;
  readonly violations?: readonly FieldViolation[];
  readonly retryAfterMs?: number;
  readonly requestId?: string;
  readonly cause?: unknown;
}

/** A call failed. */
export class AimassError extends Error {
  override readonly name = "AimassError";
  /** The gRPC status code, by name. */
  readonly code: StatusCode;
  /** The stable cause; the name of the status code when the server gave no reason. */
  readonly reason: Reason;
  /** The fields that were refused. */
  readonly violations: readonly FieldViolation[];
  /** When to come back, in milliseconds; undefined when the server did not say. */
  readonly retryAfterMs: number | undefined;
  /** The server's name for the call in its logs and traces; undefined when it did not say. */
  readonly requestId: string | undefined;

  constructor(failure: Failure) {
    const reason = failure.reason ?? failure.code;
    super(`${reason}: ${failure.message}`, { cause: failure.cause });
    this.code = failure.code;
    this.reason = reason;
    this.violations = failure.violations ?? [];
    this.retryAfterMs = failure.retryAfterMs;
    this.requestId = failure.requestId;
  }

  /** The error of a call that threw `cause`; an `AimassError` is returned as it is. */
  static from(cause: unknown): AimassError {
    if (cause instanceof AimassError) return cause;
    const error = ConnectError.from(cause);
    return isUnsendable(error) ? unsendable(error) : fromConnect(error);
  }

  /** The refusal of a value that never left this process. */
  static ofField(field: string, description: string): AimassError {
    return new AimassError({
      code: "INVALID_ARGUMENT",
      reason: "INVALID_FIELD",
      message: `${field}: ${description}`,
      violations: [{ field, description }],
    });
  }
}

/** The error of a call whose connection failed, with `code`; undefined when `cause` is something else. */
export function connectionFailure(cause: unknown, code: StatusCode): AimassError | undefined {
  if (!(cause instanceof ConnectError) || !(isReset(cause) || isNodeError(cause.cause))) return undefined;
  return new AimassError({ code, message: `the connection failed: ${cause.rawMessage}`, cause });
}

/** Whether the stream was reset without a status from the server. */
function isReset(error: ConnectError): boolean {
  return error.rawMessage.startsWith("http/2 ");
}

/** Whether it is an error of Node's sockets, TLS or HTTP/2, which all carry a code such as `ECONNRESET`. */
function isNodeError(cause: unknown): boolean {
  return cause instanceof Error && "code" in cause && typeof cause.code === "string";
}

/** The failure of one item of a batch, in the words of `AimassError`. */
export function itemFailure(error: ItemError): ItemFailure {
  return {
    reason: ErrorReason[error.reason] ?? "UNSPECIFIED",
    message: error.message,
    violations: error.violations.map(({ field, description }) => ({ field, description })),
  };
}

function fromConnect(error: ConnectError): AimassError {
  const [info] = error.findDetails(ErrorInfoSchema).filter(({ domain }) => domain === ERROR_DOMAIN);
  const violations = error.findDetails(BadRequestSchema).flatMap(({ fieldViolations }) => fieldViolations);
  return new AimassError({
    code: STATUS_CODES[error.code],
    reason: info?.reason,
    message: error.rawMessage,
    violations: violations.map(({ field, description }) => ({ field, description })),
    retryAfterMs: retryAfterMs(error),
    requestId: error.findDetails(RequestInfoSchema)[0]?.requestId ?? info?.metadata.request_id,
    cause: error,
  });
}

/** Whether the transport could not put a value into its message: the caller's fault, though it says INTERNAL. */
function isUnsendable(error: ConnectError): boolean {
  return error.code === Code.Internal && error.rawMessage.startsWith("serialize ");
}

function unsendable(error: ConnectError): AimassError {
  return new AimassError({
    code: "INVALID_ARGUMENT",
    reason: "INVALID_FIELD",
    message: error.rawMessage,
    cause: error,
  });
}

function retryAfterMs(error: ConnectError): number | undefined {
  const delay = error.findDetails(RetryInfoSchema)[0]?.retryDelay;
  if (delay !== undefined) {
    return durationMs(delay);
  }
  const pushback = error.metadata.get(PUSHBACK_TRAILER) ?? "";
  return /^\d+$/.test(pushback) ? Number(pushback) : undefined;
}

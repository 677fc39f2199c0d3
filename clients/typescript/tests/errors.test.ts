import assert from "node:assert/strict";
import { type TestContext, test } from "node:test";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { ModelService } from "../src/gen/aimass/model/v1/model_service_pb.js";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  RequestInfoSchema,
  RetryInfoSchema,
} from "../src/gen/google/rpc/error_details_pb.js";
import { AimassError, ModelClient } from "../src/index.js";
import { serve } from "./scripted-server.js";

/** What the client throws when the server answers every call with `error`. */
async function thrown(t: TestContext, error: ConnectError): Promise<AimassError> {
  const server = await serve((router) =>
    router.service(ModelService, {
      getModel() {
        throw error;
      },
    }),
  );
  const client = new ModelClient({ address: server.address });
  t.after(async () => {
    client.close();
    await server.close();
  });
  const caught = await client.get("tiny").catch((cause: unknown) => cause);
  assert.ok(caught instanceof AimassError);
  return caught;
}

test("an error carries reason, violations and request id of the server", async (t) => {
  const error = await thrown(
    t,
    new ConnectError("model: größer", Code.InvalidArgument, undefined, [
      {
        desc: ErrorInfoSchema,
        value: { reason: "INVALID_FIELD", domain: "aimass", metadata: { request_id: "r-7" } },
      },
      {
        desc: BadRequestSchema,
        value: {
          fieldViolations: [{ field: "sampling.temperature", description: "expected 0 to 10, got 11" }],
        },
      },
    ]),
  );
  assert.equal(error.code, "INVALID_ARGUMENT");
  assert.equal(error.reason, "INVALID_FIELD");
  assert.equal(error.message, "INVALID_FIELD: model: größer");
  assert.deepEqual(error.violations, [
    { field: "sampling.temperature", description: "expected 0 to 10, got 11" },
  ]);
  assert.equal(error.requestId, "r-7");
  assert.equal(error.retryAfterMs, undefined);
});

test("RequestInfo names the request", async (t) => {
  const details = [{ desc: RequestInfoSchema, value: { requestId: "r-8" } }];
  const error = await thrown(t, new ConnectError("a fault", Code.Internal, undefined, details));
  assert.equal(error.requestId, "r-8");
});

test("overload says when to come back", async (t) => {
  const details = [
    { desc: ErrorInfoSchema, value: { reason: "OVERLOADED", domain: "aimass" } },
    { desc: RetryInfoSchema, value: { retryDelay: durationFromMs(1250) } },
  ];
  const error = await thrown(t, new ConnectError("queue full", Code.ResourceExhausted, undefined, details));
  assert.deepEqual(
    [error.code, error.reason, error.retryAfterMs],
    ["RESOURCE_EXHAUSTED", "OVERLOADED", 1250],
  );
});

test("the pushback trailer alone says when to come back", async (t) => {
  const headers = { "grpc-retry-pushback-ms": "300" };
  const error = await thrown(t, new ConnectError("queue full", Code.ResourceExhausted, headers));
  assert.equal(error.retryAfterMs, 300);
});

test("a pushback that means never is no delay", async (t) => {
  const headers = { "grpc-retry-pushback-ms": "-1" };
  const error = await thrown(t, new ConnectError("queue full", Code.ResourceExhausted, headers));
  assert.equal(error.retryAfterMs, undefined);
});

test("without details the reason is the name of the status code", async (t) => {
  const error = await thrown(t, new ConnectError("no such thing", Code.NotFound));
  assert.deepEqual([error.code, error.reason, error.violations], ["NOT_FOUND", "NOT_FOUND", []]);
});

test("another domain's reason is not taken for one of aimass", async (t) => {
  const details = [{ desc: ErrorInfoSchema, value: { reason: "QUOTA", domain: "proxy.example" } }];
  const error = await thrown(t, new ConnectError("no", Code.PermissionDenied, undefined, details));
  assert.equal(error.reason, "PERMISSION_DENIED");
});

test("a call that the server does not know is UNIMPLEMENTED", async (t) => {
  const server = await serve(() => undefined);
  const client = new ModelClient({ address: server.address });
  t.after(async () => {
    client.close();
    await server.close();
  });
  await assert.rejects(client.list(), { name: "AimassError", code: "UNIMPLEMENTED" });
});

test("nobody at the address is UNAVAILABLE", async () => {
  const server = await serve(() => undefined);
  await server.close();
  using client = new ModelClient({ address: server.address });
  await assert.rejects(client.list(), { name: "AimassError", code: "UNAVAILABLE" });
});

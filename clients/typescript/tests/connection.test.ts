import assert from "node:assert/strict";
import { type TestContext, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { GenerationService } from "../src/gen/aimass/generation/v1/generation_service_pb.js";
import { ModelService } from "../src/gen/aimass/model/v1/model_service_pb.js";
import {
  type CallOptions,
  Connection,
  type ConnectionOptions,
  GenerationClient,
  ModelClient,
} from "../src/index.js";
import { serve } from "./scripted-server.js";

/** The metadata a server sees of one call. */
async function seenHeaders(
  t: TestContext,
  options: Partial<ConnectionOptions>,
  callOptions: CallOptions,
): Promise<Headers> {
  const seen: Headers[] = [];
  const server = await serve((router) =>
    router.service(ModelService, {
      listModels(_request, context) {
        seen.push(context.requestHeader);
        return {};
      },
    }),
  );
  const client = new ModelClient({ address: server.address, ...options });
  t.after(async () => {
    client.close();
    await server.close();
  });
  await client.list(callOptions);
  assert.ok(seen[0]);
  return seen[0];
}

test("trace context, API key and further metadata reach the server", async (t) => {
  const traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  const headers = await seenHeaders(
    t,
    { apiKey: "secret" },
    { traceparent, tracestate: "vendor=1", headers: { "x-tenant": "blue" } },
  );
  assert.equal(headers.get("traceparent"), traceparent);
  assert.equal(headers.get("tracestate"), "vendor=1");
  assert.equal(headers.get("authorization"), "Bearer secret");
  assert.equal(headers.get("x-tenant"), "blue");
});

test("an interceptor may add metadata, as tracing libraries do", async (t) => {
  const headers = await seenHeaders(
    t,
    {
      interceptors: [
        (next) => (request) => {
          request.header.set("traceparent", "from-the-interceptor");
          return next(request);
        },
      ],
    },
    {},
  );
  assert.equal(headers.get("traceparent"), "from-the-interceptor");
});

test("a call without options sends neither key nor trace context", async (t) => {
  const headers = await seenHeaders(t, {}, {});
  assert.equal(headers.get("authorization"), null);
  assert.equal(headers.get("traceparent"), null);
});

test("a fraction of a millisecond still makes a deadline the server can read", async (t) => {
  const headers = await seenHeaders(t, {}, { timeoutMs: 1999.5 });
  assert.equal(headers.get("grpc-timeout"), "2000m");
});

test("an address that is not host:port is refused", () => {
  for (const address of ["", "localhost", "http://localhost:50051", "localhost:50051/path", "a@b:1"]) {
    assert.throws(() => new Connection({ address }), { reason: "INVALID_FIELD", message: /host:port/ });
  }
  for (const address of ["localhost:50051", "127.0.0.1:1", "[::1]:50051", "encoder.default.svc:50052"]) {
    new Connection({ address }).close();
  }
});

test("a connection that breaks during a call is UNAVAILABLE, and the next call opens a new one", async (t) => {
  let numCalls = 0;
  const server = await serve((router) =>
    router.service(ModelService, {
      async listModels() {
        numCalls += 1;
        if (numCalls === 1) server.dropConnections();
        await sleep(5);
        return {};
      },
    }),
  );
  const client = new ModelClient({ address: server.address });
  t.after(async () => {
    client.close();
    await server.close();
  });
  await assert.rejects(client.list(), { name: "AimassError", code: "UNAVAILABLE" });
  assert.deepEqual(await client.list(), []);
});

test("a connection that breaks during a stream is UNAVAILABLE", async (t) => {
  const server = await serve((router) =>
    router.service(GenerationService, {
      async *generate() {
        yield { event: { case: "delta", value: { text: "cut o" } } };
        await sleep(10_000, undefined, { ref: false });
      },
    }),
  );
  const client = new GenerationClient({ address: server.address });
  t.after(async () => {
    client.close();
    await server.close();
  });
  const read = async () => {
    for await (const _ of client.generate({ model: "tiny", prompt: "Hello" })) server.dropConnections();
  };
  await assert.rejects(read(), { name: "AimassError", code: "UNAVAILABLE" });
});

test("a client that was given its connection leaves it open", async (t) => {
  const server = await serve((router) => router.service(ModelService, { listModels: () => ({}) }));
  const connection = new Connection({ address: server.address });
  t.after(async () => {
    connection.close();
    await server.close();
  });
  {
    using client = new ModelClient(connection);
    await client.list();
  }
  assert.deepEqual(await new ModelClient(connection).list(), []);
});

test("a closed connection takes no more calls", async (t) => {
  const server = await serve((router) => router.service(ModelService, { listModels: () => ({}) }));
  t.after(() => server.close());
  const client = new ModelClient({ address: server.address });
  await client.list();
  client.close();
  client.close();
  await assert.rejects(client.list(), { name: "AimassError", code: "CANCELLED" });
});

test("many calls at once share a connection without a warning", async (t) => {
  const server = await serve((router) => router.service(ModelService, { listModels: () => ({}) }));
  const client = new ModelClient({ address: server.address });
  t.after(async () => {
    client.close();
    await server.close();
  });
  const warnings: Error[] = [];
  const note = (warning: Error) => void warnings.push(warning);
  process.on("warning", note);
  const { signal } = new AbortController();
  await Promise.all(Array.from({ length: 50 }, () => client.list({ signal })));
  await sleep(1);
  process.off("warning", note);
  assert.deepEqual(warnings, []);
});

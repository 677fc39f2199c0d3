/** A real gRPC server on a free port of this process, whose answers a test scripts. */

import { createServer, type Http2Server, type ServerHttp2Session } from "node:http2";
import type { AddressInfo } from "node:net";
import type { ConnectRouter } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";

export interface ScriptedServer {
  readonly address: string;
  close(): Promise<void>;
}

/** Serves what `routes` registers until closed. */
export async function serve(routes: (router: ConnectRouter) => unknown): Promise<ScriptedServer> {
  const server = createServer(connectNodeAdapter({ routes: (router) => void routes(router) }));
  const sessions = new Set<ServerHttp2Session>();
  server.on("session", (session) => {
    sessions.add(session);
    session.once("close", () => sessions.delete(session));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  return { address: `127.0.0.1:${port}`, close: () => shut(server, sessions) };
}

async function shut(server: Http2Server, sessions: ReadonlySet<ServerHttp2Session>): Promise<void> {
  for (const session of sessions) session.destroy();
  await new Promise<void>((resolve) => server.close(() => resolve()));
}

/** A real gRPC server on a free port of this process, whose answers a test scripts. */

import { createServer } from "node:http2";
import type { AddressInfo, Socket } from "node:net";
import type { ConnectRouter } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";

export interface ScriptedServer {
  readonly address: string;
  /** Breaks every connection without a word, as a crash does. */
  dropConnections(): void;
  close(): Promise<void>;
}

/** Serves what `routes` registers until closed. */
export async function serve(routes: (router: ConnectRouter) => unknown): Promise<ScriptedServer> {
  const server = createServer(connectNodeAdapter({ routes: (router) => void routes(router) }));
  const sockets = new Set<Socket>();
  server.on("connection", (socket: Socket) => {
    sockets.add(socket);
    socket.once("close", () => sockets.delete(socket));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  const dropConnections = () => {
    for (const socket of sockets) socket.destroy();
  };
  const close = async () => {
    dropConnections();
    await new Promise<void>((resolve) => server.close(() => resolve()));
  };
  return { address: `127.0.0.1:${port}`, dropConnections, close };
}

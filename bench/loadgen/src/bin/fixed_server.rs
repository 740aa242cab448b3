//! `fixed-server`: answers `Predict` from a file of prepared calls, without a model. It bounds what the generator can
//! measure: run both on a core each and compare the generator's own CPU time with the rate.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

use bytes::Bytes;
use clap::Parser;
use forebay_loadgen::calls;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::LocalSet;

/// Answers `Predict` from a file of prepared calls.
#[derive(Parser)]
struct Options {
    /// Where to listen.
    #[arg(long)]
    listen: SocketAddr,
    /// Prepared requests and their answers.
    #[arg(long)]
    calls: PathBuf,
}

type Answers = HashMap<Bytes, Bytes>;
type Reply = Response<BoxBody<Bytes, Infallible>>;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fixed-server: {error}");
            ExitCode::from(1)
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    let calls = calls::read(&options.calls)?;
    let answers = calls.into_iter().map(|call| (call.framed.clone(), calls::frame(&call.answer))).collect();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    LocalSet::new().block_on(&runtime, serve(options.listen, Rc::new(answers)))
}

async fn serve(address: SocketAddr, answers: Rc<Answers>) -> Result<(), String> {
    let listener = TcpListener::bind(address).await.map_err(|error| format!("cannot listen on {address}: {error}"))?;
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        // Without it answers would wait for acknowledgements; if it fails they only do.
        let _ = socket.set_nodelay(true);
        let answers = Rc::clone(&answers);
        tokio::task::spawn_local(async move {
            let service = service_fn(move |request| answer(Rc::clone(&answers), request));
            // A broken connection is its caller's concern.
            let _ = http2::Builder::new(LocalExecutor)
                .max_concurrent_streams(10_000)
                .initial_stream_window_size(4 << 20)
                .initial_connection_window_size(64 << 20)
                .serve_connection(TokioIo::new(socket), service)
                .await;
        });
    }
}

async fn answer(answers: Rc<Answers>, request: Request<Incoming>) -> Result<Reply, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let mut trailers = HeaderMap::new();
    let (message, status) = answers.get(&body).map_or((Bytes::new(), "3"), |message| (message.clone(), "0"));
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    let body = Full::new(message).with_trailers(std::future::ready(Some(Ok(trailers)))).boxed();
    let mut response = Response::new(body);
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    Ok(response)
}

#[derive(Clone)]
struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

-- What each database of the wrapper's has, since all are made from template1: the extension, and a table that its
-- event logger fills.

CREATE EXTENSION absmartly;

CREATE TABLE public.events (
    n bigint GENERATED ALWAYS AS IDENTITY,
    context text,
    type text NOT NULL,
    data jsonb,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE FUNCTION public.log_event(context jsonb, event text, data jsonb) RETURNS void LANGUAGE sql
    AS 'INSERT INTO public.events (context, type, data) VALUES (context ->> ''id'', event, data)';

-- The database without a context: others are made and dropped from there, and /diagnostic asks it.
CREATE DATABASE conformance;

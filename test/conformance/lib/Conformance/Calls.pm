package Conformance::Calls;

# What the wrapper's calls are in SQL.  b is the request's body as jsonb, j as json.

use strict;
use warnings;

use Exporter 'import';

our @EXPORT_OK = qw(%CONTEXT_GET %CONTEXT_POST %DIAGNOSTIC $CREATE $CREATED $EVENTS query);

# GET /context/C/CALL
our %CONTEXT_GET = (
    pending     => answer('absmartly_context_pending()'),
    isReady     => answer('absmartly_context_is_ready()'),
    isFailed    => answer('absmartly_context_is_failed()'),
    isFinalized => answer('absmartly_context_is_finalized()'),
    experiments => answer('absmartly_context_experiments()'),
);

# POST /context/C/CALL
our %CONTEXT_POST = (
    setUnit  => action(q{absmartly_context_set_unit(b ->> 'unitType', b -> 'uid')}),
    getUnit  => answer(q{absmartly_context_get_unit(b ->> 'unitType')}),
    getUnits => answer('absmartly_context_units()'),

    attribute     => action(q{absmartly_context_set_attribute(b ->> 'name', b -> 'value')}),
    getAttribute  => answer(q{absmartly_context_get_attribute(b ->> 'name')}),
    getAttributes => answer('absmartly_context_attributes()'),

    treatment => answer(q{absmartly_context_treatment(b ->> 'experimentName')}),
    peek      => answer(q{absmartly_context_peek_treatment(b ->> 'experimentName')}),

    variableValue     => answer(q{absmartly_context_variable_value(b ->> 'key', b -> 'defaultValue')}),
    peekVariableValue => answer(q{absmartly_context_peek_variable_value(b ->> 'key', b -> 'defaultValue')}),
    variableKeys      => answer('ARRAY(SELECT jsonb_object_keys(absmartly_context_variable_keys()))'),
    variableKeysMap   => answer('absmartly_context_variable_keys()'),

    track => action(q{absmartly_context_track(b ->> 'goalName', b -> 'properties')}),

    (
        map { $_ => action(q{absmartly_context_set_override(b ->> 'experimentName', (b -> 'variant')::int)}) }
            qw(override setOverride)
    ),
    (
        map { $_ => action(q{absmartly_context_set_custom_assignment(b ->> 'experimentName', (b -> 'variant')::int)}) }
            qw(customAssignment setCustomAssignment)
    ),

    customFieldValue     => answer(q{absmartly_context_custom_field_value(b ->> 'experimentName', b ->> 'fieldName')}),
    customFieldValueType => answer(q{absmartly_context_custom_field_value_type(b ->> 'experimentName', b ->> 'fieldName')}),
    (map { $_ => answer('absmartly_context_custom_field_keys()') } qw(customFieldKeys globalCustomFieldKeys)),

    publish  => action('absmartly_context_publish()'),
    finalize => action('absmartly_context_finalize()'),
    refresh  => action('absmartly_context_refresh()'),

    readyError => answer(
        q{(SELECT jsonb_build_object('isError', true, 'message', e) FROM absmartly_context_ready_error() AS e}
            . q{ WHERE e IS NOT NULL)}
    ),
);

# POST /context
our $CREATE = query(<<'END');
absmartly_context_create(
    units => coalesce(b -> 'units', '{}'),
    data => j -> 'data',
    options => jsonb_build_object(
        'publish_delay', coalesce(b #> '{options,publishDelay}', '-1'),
        'refresh_interval', coalesce(b #> '{options,refreshPeriod}', '0')))
END

our $CREATED = answer(<<'END');
jsonb_build_object(
    'contextId', b ->> 'contextId',
    'ready', absmartly_context_is_ready(),
    'failed', absmartly_context_is_failed(),
    'finalized', absmartly_context_is_finalized())
END

# POST /diagnostic: by operation
our %DIAGNOSTIC = (
    hashUnit => answer(
        q{CASE jsonb_typeof(b -> 'value') WHEN 'number' THEN absmartly_hash_unit((b -> 'value')::numeric)}
            . q{ ELSE absmartly_hash_unit(b ->> 'value') END}
    ),
    base64UrlNoPadding => answer(q{absmartly_base64url(b ->> 'value')}),
    utf8Bytes          => answer(q{absmartly_utf8_bytes(b ->> 'value')}),
    isObject           => answer(q{jsonb_typeof(b -> 'value') = 'object'}),
    isNumeric          => answer(q{jsonb_typeof(b -> 'value') = 'number'}),
    isPromise          => answer('false'),
);

# The context's events since it was last asked for them: they are taken out of the table.
our $EVENTS = <<'END';
WITH gone AS (DELETE FROM public.events WHERE context = absmartly_context_id() RETURNING n, type, data, at)
SELECT coalesce(json_agg(
    json_build_object('type', type, 'data', data, 'timestamp', floor(extract(epoch FROM at) * 1000)) ORDER BY n), '[]')
FROM gone
END

# A query over a request's body
sub query {
    my ($expression) = @_;
    return "SELECT $expression FROM (SELECT \$1::json, \$1::jsonb) AS request (j, b)";
}

# A function whose result is the call's
sub answer {
    my ($expression) = @_;
    return query("to_json($expression)");
}

# One without a result: what "void" is as text is no JSON
sub action {
    my ($expression) = @_;
    return query($expression);
}

1;
